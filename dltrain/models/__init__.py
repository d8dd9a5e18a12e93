"""Pure nn.Modules, each with its paper. They import torch, torchvision, dltrain.contracts and each other only."""
