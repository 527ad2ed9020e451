"A network that does as it is told: slow, or failing."
import time

import torch


class ControllableNet(torch.nn.Module):
    "Another network that can be told to be slow, or to fail, and counts how often it is asked."
    def __init__(self, net):
        super().__init__()
        self.net, self.shape, self.pause, self.fails, self.calls = net, net.shape, 0, False, 0

    def forward(self, *args):
        self.calls += 1
        time.sleep(self.pause)
        if isinstance(self.fails, Exception): raise self.fails
        if self.fails: raise RuntimeError("a secret in /some/folder")
        return self.net(*args)
