"""The mixins on a plain `transformers.Trainer`."""

import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.trl_mixins import MaskedTraining, save_gates_only
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from tests.support.tiny_model import tiny_llama


class Plain(MaskedTraining, Trainer):
    pass


def trainer(folder, accumulation=1):
    model = tiny_llama()
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(24).reshape(4, 6) + 9]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    attached = attach(model)
    save_gates_only(model, attached)
    data = {"train_dataset": rows, "eval_dataset": rows}
    return Plain(model=model, args=arguments, **data, attached=attached, reg_lambda=0.5)


def test_evaluation_is_hard_and_training_soft(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    modes = []
    forward = MaskedLinear.forward
    monkeypatch.setattr(
        MaskedLinear, "forward", lambda self, x: modes.append(self.state.mode) or forward(self, x)
    )
    made.evaluate()
    assert set(modes) == {"hard"}
    modes.clear()
    made.train()
    assert set(modes) == {"soft"}
    modes.clear()
    made.evaluate()
    assert set(modes) == {"hard"}


def test_the_regularizer_is_shared_among_micro_batches(tmp_path):
    for accumulation in (1, 2):
        made = trainer(tmp_path, accumulation)
        made.train()
        assert made.attached.state.regularizer == 0.5 / accumulation


def test_checkpoints_hold_only_the_gates(tmp_path):
    made = trainer(tmp_path)
    made.train()
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    gates = {f"{n}.gate_logits": m.gate_logits for n, m in made.attached.layers.items()}
    assert kept.keys() == gates.keys()
    assert all(torch.equal(kept[name], gate) for name, gate in gates.items())
