"""Fine-tuning and adversarial training."""
