"""What a killed program, a bad disk or a hostile name leaves behind: nothing that is wrong, and nothing outside.

    python -m tests.crash                                # kills, environment and hostile names (make crash)
    python -m tests.crash kills --kills 50 --seed 3      # some of them
    python -m tests.crash hostile --results out/hostile.json

Programs run on made data in processes that are forked from one that has imported everything (`zygote`). A kill happens
at a chosen change of the file system (`kill_points`); then the same command is run again, and must end well and leave
what an undisturbed run leaves, byte by byte but for times and hosts (`trees`).
"""
