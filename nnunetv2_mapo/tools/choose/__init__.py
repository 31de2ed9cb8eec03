"""`nnUNetv2_mapo choose`: an expert says which of several segmentations is better.

`images` finds and preprocesses, `candidates` segments, `duplicates` refuses what the model was
trained on, `folder` keeps it all, `preparation` does so in the background; `session` asks,
`views` and `server` show, `expert` answers from a ground truth, `agreement` sums up.
"""
