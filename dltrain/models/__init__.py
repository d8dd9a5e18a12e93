"""Pure nn.Modules; each file imports torch and torchvision only and can be copied out alone."""
