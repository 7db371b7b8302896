"""Crash tests: after kills, faults of the file system and hostile names, no wrong result and no change elsewhere.

    python -m tests.crash                                # kills, environment and hostile names (make crash)
    python -m tests.crash kills --kills 50 --seed 3      # some of them
    python -m tests.crash hostile --results out/hostile.json

Programs run on synthetic data in processes forked from one that has imported everything (`zygote`). A program is killed
at a chosen change of the file system (`kill_points`). The same command is then run again: it must succeed and leave the
same files as an undisturbed run, byte by byte except for times and host names (`trees`).
"""
