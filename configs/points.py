"""Run settings, one row a scaling point; what a model *is* stands in robustjax.models.registry."""

NANO = {
    # Trained from scratch: far higher learning rates than fine-tuning, and more updates the smaller
    # the model is (an update costs it little). Hardening needs many different adversarial texts
    # more than it needs strong ones: `examples` are attacked in each round, `sample` is trained on,
    # of which at most `adversarial` come from the pool.
    "nano-27k": {
        "pretrain": {"num_train": 8_000, "epochs": 1, "learning_rate": 4e-3},
        "finetune": {"num_train": 20_000, "epochs": 3, "learning_rate": 2e-3},
        "advtrain": {"examples": 1500, "sample": 3000, "epochs": 3, "learning_rate": 2e-3},
    },
    "nano-80k": {
        "pretrain": {"num_train": 8_000, "epochs": 1, "learning_rate": 4e-3},
        "finetune": {"num_train": 16_000, "epochs": 3, "learning_rate": 3e-3},
        "advtrain": {
            "examples": 2000,
            "sample": 5000,
            "adversarial": 0.7,
            "epochs": 3,
            "learning_rate": 3e-3,
        },
    },
    "nano-230k": {
        "pretrain": {"num_train": 8_000, "epochs": 1, "learning_rate": 3e-3},
        "finetune": {"num_train": 12_000, "epochs": 1, "learning_rate": 3e-3},
        "advtrain": {"examples": 1200, "sample": 2400, "epochs": 2, "learning_rate": 1.5e-3},
    },
    "nano-510k": {
        "pretrain": {"num_train": 8_000, "epochs": 1, "learning_rate": 1.5e-3},
        "finetune": {"num_train": 10_000, "epochs": 1, "learning_rate": 1.2e-3},
        "advtrain": {"examples": 800, "sample": 1400, "epochs": 2, "learning_rate": 7e-4},
    },
    "nano-830k": {
        "pretrain": {"num_train": 8_000, "epochs": 1, "learning_rate": 1e-3},
        "finetune": {"num_train": 10_000, "epochs": 1, "learning_rate": 1e-3},
        "advtrain": {
            "examples": 1000,
            "sample": 2000,
            "adversarial": 0.75,
            "epochs": 2,
            "learning_rate": 7.5e-4,
        },
    },
}

NANO_FEW_LONG = {
    # One's own data, from scratch: some thousand texts of some hundred tokens. All are trained on.
    "nano-27k": {
        "pretrain": {"num_train": 0, "epochs": 2, "learning_rate": 4e-3},
        "finetune": {"num_train": 0, "epochs": 8, "learning_rate": 5e-3},
        "advtrain": {"examples": 200, "sample": 600, "epochs": 1, "learning_rate": 2e-3},
    },
    "nano-80k": {
        "pretrain": {"num_train": 0, "epochs": 2, "learning_rate": 4e-3},
        "finetune": {"num_train": 0, "epochs": 6, "learning_rate": 3e-3},
        "advtrain": {"examples": 200, "sample": 600, "epochs": 1, "learning_rate": 2e-3},
    },
    "nano-230k": {
        "pretrain": {"num_train": 0, "epochs": 2, "learning_rate": 3e-3},
        "finetune": {"num_train": 0, "epochs": 4, "learning_rate": 2e-3},
        "advtrain": {"examples": 200, "sample": 600, "epochs": 1, "learning_rate": 1e-3},
    },
    "nano-510k": {
        "pretrain": {"num_train": 0, "epochs": 2, "learning_rate": 1.5e-3},
        "finetune": {"num_train": 0, "epochs": 3, "learning_rate": 1.2e-3},
        "advtrain": {"examples": 200, "sample": 600, "epochs": 1, "learning_rate": 7e-4},
    },
    "nano-830k": {
        "pretrain": {"num_train": 0, "epochs": 2, "learning_rate": 1e-3},
        "finetune": {"num_train": 0, "epochs": 3, "learning_rate": 1e-3},
        "advtrain": {"examples": 200, "sample": 600, "epochs": 1, "learning_rate": 5e-4},
    },
}

# Fine-tuning of published weights, the same for all sizes, as in Howe et al. 2024.
PUBLISHED = {"num_train": 0, "epochs": 3, "learning_rate": 1e-5}

# Rounds of adversarial training, about the same compute for every size but the largest (Howe et al.
# 2024, arXiv 2407.18213); of the Qwen2.5 models only hardened against GCG.
ROUNDS = {
    "pythia-14m": {"gcg": 60, "random_token": 250},
    "pythia-31m": {"gcg": 60, "random_token": 250},
    "pythia-70m": {"gcg": 60, "random_token": 163},
    "pythia-160m": {"gcg": 59, "random_token": 59},
    "pythia-410m": {"gcg": 21, "random_token": 21},
    "pythia-1b": {"gcg": 8, "random_token": 8},
    "pythia-1.4b": {"gcg": 6, "random_token": 6},
    "pythia-2.8b": {"gcg": 5, "random_token": 5},
    "pythia-6.9b": {"gcg": 5, "random_token": 5},
    "pythia-12b": {"gcg": 5, "random_token": 5},
    "qwen2.5-0.5b": {"gcg": 22},
    "qwen2.5-1.5b": {"gcg": 10},
    "qwen2.5-3b": {"gcg": 10},
    "qwen2.5-7b": {"gcg": 10},
    "qwen2.5-14b": {"gcg": 10},
}
OTHER_ROUNDS = 10  # of models and attacks that are not in the table
