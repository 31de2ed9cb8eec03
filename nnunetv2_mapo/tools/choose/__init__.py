"""`nnUNetv2_mapo choose`: an expert says which of several segmentations is better.

`images` finds and preprocesses, `candidates` segments, `folder` keeps it, `preparation` does all
this in the background; `questions` and `session` ask, `views` and `server` show, `expert` answers
from a ground truth, `agreement` sums up.
"""
