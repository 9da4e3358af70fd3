"""Models by name: what torchvision, timm and transformers build."""
