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

# How each published model is run, and the TPU slice that `robustjax plan` compiles it for unless it
# is told another; docs/tpu_plans.md has what came of it.
#
# topology: the slice.
# tensor: chips that an attack splits weights over within layers; the fewer, the less they exchange.
# The others share the examples (data).
# train_tensor, fsdp: chips that training splits weights over, within layers and otherwise.
# numerics, train_numerics: of the attacked model and of training, whose weights stay float32: at a
# learning rate of 1e-5 an update is less than half a step of bfloat16.
# batch_size, candidate_chunk: examples attacked at once, and how many of their candidates.
# microbatch_size: texts whose gradients are taken at once.
# remat: what training computes again; None takes what suits the shape.
FULL = {
    "param_dtype": "float32",
    "compute_dtype": "float32",
    "accumulation_dtype": "float32",
    "matmul_precision": "highest",
}
NARROW = {
    "param_dtype": "bfloat16",
    "compute_dtype": "bfloat16",
    "accumulation_dtype": "float32",
    "matmul_precision": "default",
}
MIXED = NARROW | {"param_dtype": "float32"}
_SMALL = {
    "topology": "v5e:1x1",
    "tensor": 1,
    "train_tensor": 1,
    "fsdp": 1,
    "numerics": FULL,
    "train_numerics": FULL,
    "batch_size": 16,
    "candidate_chunk": 32,
    "microbatch_size": 8,
    "remat": None,
}
_LARGE = _SMALL | {"numerics": NARROW, "train_numerics": MIXED}
PUBLISHED_POINTS = {
    "pythia-14m": _SMALL,
    "pythia-31m": _SMALL,
    "pythia-70m": _SMALL | {"topology": "v5e:2x2"},
    "pythia-160m": _SMALL | {"topology": "v5e:2x2"},
    "pythia-410m": _SMALL | {"topology": "v5e:2x2"},
    "pythia-1b": _SMALL | {"topology": "v5e:2x4", "fsdp": 4},
    "pythia-1.4b": _SMALL | {"topology": "v5e:2x4", "fsdp": 4},
    "pythia-2.8b": _LARGE | {"topology": "v5e:2x4", "fsdp": 8},
    "pythia-6.9b": _LARGE | {"topology": "v5e:4x4", "tensor": 4, "train_tensor": 4, "fsdp": 4},
    "pythia-12b": _LARGE | {"topology": "v5e:4x4", "tensor": 4, "train_tensor": 4, "fsdp": 4},
    "qwen2.5-0.5b": _LARGE | {"topology": "v5e:2x2", "fsdp": 4, "remat": "blocks"},
    "qwen2.5-1.5b": _LARGE | {"topology": "v5e:2x4", "fsdp": 8, "remat": "blocks"},
    "qwen2.5-3b": _LARGE | {"topology": "v5e:2x4", "fsdp": 8},
    "qwen2.5-7b": _LARGE | {"topology": "v5e:4x4", "tensor": 4, "train_tensor": 4, "fsdp": 4},
    "qwen2.5-14b": _LARGE | {"topology": "v5e:4x8", "tensor": 4, "train_tensor": 4, "fsdp": 8},
}


def slice_settings(row: dict, *, is_trained: bool = False) -> dict:
    """The slice of a row, and the mesh on it; data takes whatever devices there are."""
    mesh = (
        {"data": -1, "fsdp": row["fsdp"], "tensor": row["train_tensor"]}
        if is_trained
        else {"data": -1, "fsdp": 1, "tensor": row["tensor"]}
    )
    return {"topology": row["topology"], "mesh": mesh}


def training_model(row: dict) -> dict:
    """What a training of a published model has from its row; nothing for other models."""
    return {"numerics": row["train_numerics"], "remat": row["remat"]} if row else {}
