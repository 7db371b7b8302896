"""Fuzzing: cases drawn at random, each of which must be right or refused by one sentence (`InputError`).

    python -m tests.fuzz                                   # all targets, as many cases as PLAN says (make fuzz)
    python -m tests.fuzz lists checkpoints --cases 2000    # some targets, fewer cases
    python -m tests.fuzz lists --only case_filelist:1234   # one case again, in this process

A module of `tests.fuzz.targets` is a target; its functions `case_*(rng, folder)` draw one case from `rng` alone and
work in `folder`, which is empty. Raising InputError is right; any other exception, an AssertionError for a wrong value,
the end of the process, more than MEMORY bytes, or more than LIMIT seconds is a fault.
"""
