"""Guards of a training: may it start, may it go on, may it take this step?"""
