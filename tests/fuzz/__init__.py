"""Fuzzing: random cases, each of which must give the right result or be refused with one sentence (`InputError`).

    python -m tests.fuzz                                   # all targets, as many cases as PLAN says (make fuzz)
    python -m tests.fuzz lists checkpoints --cases 2000    # some targets, fewer cases
    python -m tests.fuzz lists --only case_filelist:1234   # one case again, in this process

Each module of `tests.fuzz.targets` is a target; its functions `case_*(rng, folder)` draw a case from `rng` alone and
work in `folder`, which is empty. An InputError counts as refused. Any other exception, an AssertionError for a wrong
value, a crash of the process, more than MEMORY bytes or more than LIMIT seconds is a fault.
"""
