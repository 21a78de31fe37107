"""One thread for torch: on small matrices, threads wait for each other longer than they compute.

On a machine that is busy with other work the tests would take up to sixty times as long.
"""

import torch

torch.set_num_threads(1)
