"""Run settings, one row a scaling point; what a model *is* stands in robustjax.models.registry."""

NANO = {
    # Trained from scratch: far higher learning rates than fine-tuning, and more updates the smaller
    # the model is (an update costs it little).
    "nano-27k": {"num_train": 16_000, "epochs": 3, "batch_size": 8, "learning_rate": 5e-3},
    "nano-80k": {"num_train": 16_000, "epochs": 2, "batch_size": 4, "learning_rate": 2e-3},
    "nano-230k": {"num_train": 10_000, "epochs": 2, "batch_size": 4, "learning_rate": 1.5e-3},
    "nano-500k": {"num_train": 10_000, "epochs": 1, "batch_size": 4, "learning_rate": 1.5e-3},
    "nano-850k": {"num_train": 10_000, "epochs": 1, "batch_size": 4, "learning_rate": 1.5e-3},
}
