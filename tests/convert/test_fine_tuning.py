"""An hf export in transformers' own classes: AutoModel finds it, and Trainer fine-tunes, evaluates and saves it."""

import pytest

torch = pytest.importorskip("torch")

PAIRS = [
    ("one two", "two one"),
    ("red green blue", "blue green red"),
    ("new", "new"),
    ("old small big", "big small old"),
]


@pytest.fixture(scope="module", params=["bart, source rows", "post-norm"])
def directory(request, export_of):
    """An export whose AR rows start with eos, and one whose labels hold the decoder's first token."""
    return export_of(request.param)[1]


def test_auto_model_is_the_model_that_generates(directory, transformers):
    model = transformers.AutoModel.from_pretrained(directory, trust_remote_code=True)
    other = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True)
    assert type(model) is type(other)
    ids = torch.tensor([[0, 7, 8, 2]])
    assert torch.equal(model.generate(ids), other.generate(ids))


def test_the_trainer_fine_tunes(directory, transformers, tmp_path):
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    examples = [{**tokenizer(source), "labels": tokenizer(target)["input_ids"]} for source, target in PAIRS]
    arguments = transformers.Seq2SeqTrainingArguments(
        tmp_path / "run", max_steps=40, learning_rate=0.02, per_device_train_batch_size=4, predict_with_generate=True,
        report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Seq2SeqTrainer(
        model, arguments, train_dataset=examples, eval_dataset=examples, processing_class=tokenizer,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    )  # fmt: skip
    batch = tokenizer([source for source, _ in PAIRS], return_tensors="pt", padding=True)
    # Predictions are made without the labels.
    predicted = trainer.predict(examples, num_beams=1).predictions.tolist()
    free = model.generate(**batch, num_beams=1).tolist()
    padding = (-100, model.config.pad_token_id)
    assert [[t for t in row if t not in padding] for row in predicted] == [
        [t for t in row if t not in padding] for row in free
    ]
    before = trainer.evaluate(num_beams=1)["eval_loss"]
    trainer.train()
    after = trainer.evaluate(num_beams=1)["eval_loss"]
    assert after < 0.2 * before
    trainer.save_model(tmp_path / "tuned")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    texts = tokenizer.batch_decode(again.generate(**batch, num_beams=1), skip_special_tokens=True)
    assert [text.strip() for text in texts] == [target for _, target in PAIRS]
