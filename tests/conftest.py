"""One thread for the small tensors of the tests: two are slower, and much slower on a busy machine."""

import torch

torch.set_num_threads(1)
