"""Fine-tuning: pretrained weights in, adapted weights out."""
