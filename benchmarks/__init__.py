"""What the package takes, beside the published procedure, other libraries and the machine."""
