"""The parts of the benchmark; `run.py` beside this folder is the program."""
