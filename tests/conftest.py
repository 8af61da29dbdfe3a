import os

# One thread for each process: the tests are small, and spinning threads that share two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
