"""Settings that hold for every test."""

import torch

# The networks here are so small that a second thread slows them down.
torch.set_num_threads(1)
