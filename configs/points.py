"""Run settings, one row a scaling point; what a model *is* stands in robustjax/models/registry.py."""

NANO = {
    # Trained from scratch: far higher learning rates than fine-tuning, and more passes the smaller
    # the model is (a pass costs it little).
    "nano-27k": {"num_train": 16_000, "epochs": 3, "learning_rate": 5e-3},
    "nano-80k": {"num_train": 10_000, "epochs": 4, "learning_rate": 3e-3},
    "nano-230k": {"num_train": 10_000, "epochs": 2, "learning_rate": 3e-3},
    "nano-500k": {"num_train": 8_000, "epochs": 2, "learning_rate": 3e-3},
    "nano-850k": {"num_train": 8_000, "epochs": 1, "learning_rate": 3e-3},
}
