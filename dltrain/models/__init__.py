"""nn.Modules with their papers. They import torch, torchvision, dltrain.contracts and each other; timm_model, timm."""
