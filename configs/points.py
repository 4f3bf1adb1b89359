"""Run settings, one row a scaling point; what a model *is* stands in robustjax/models/registry.py."""

NANO = {
    # Trained from scratch: far higher learning rates than fine-tuning, and more passes the smaller
    # the model is (a pass costs it little).
    "nano-27k": {"num_train": 20_000, "epochs": 6, "learning_rate": 2e-2},
    "nano-70k": {"num_train": 12_000, "epochs": 5, "learning_rate": 1e-2},
    "nano-160k": {"num_train": 8_000, "epochs": 4, "learning_rate": 1e-2},
    "nano-350k": {"num_train": 6_000, "epochs": 3, "learning_rate": 5e-3},
    "nano-850k": {"num_train": 6_000, "epochs": 2, "learning_rate": 5e-3},
}
