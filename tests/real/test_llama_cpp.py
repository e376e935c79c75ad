"""Exported .gguf files in llama.cpp: token ids, logits and answers are those of `sftctl chat`."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sftctl import jsonio
from sftctl.data.sample import SAMPLE_TOKENIZER, sample_files
from sftctl.model.generate import stop_ids
from sftctl.model.sampling import Sampling
from sftctl.model.tokenizer.tokenizer import load_tokenizer
from sftctl.trained.chat import ChatSession
from sftctl.trained.gguf.file import write_gguf
from tests.real.conftest import sftctl
from tests.toys.gguf import MODELS, sentencepiece, trained
from tests.toys.llama_cpp import LlamaCpp

pytestmark = pytest.mark.real
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make llama")

TEXT = (
    "<|im_start|>user\nWhat's 12345 naïve “cafés”, 你好?  \n\n\tdef f(x):<|im_end|>\n"
    "<|im_start|>assistant\nIt's 3 o'clock, and x ** 2.<|im_end|>\n"
) * 4
MAX_NEW_TOKENS = 32


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_logits_of_every_family(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    model = trained(MODELS[name](), tokenizer).model.eval()
    write_gguf(model, tokenizer, tmp_path / "x.gguf", "float32", "toy")
    llama = LlamaCpp.open(tmp_path / "x.gguf")
    ids = tokenizer.encode(TEXT).tolist()
    assert llama.encode(TEXT) == ids
    with torch.no_grad():
        ours = model(torch.tensor([ids[:250]])).logits[0]  # Mistral's window is 256
    largest = float((llama.logits(ids[:250]) - ours).abs().max())
    print(f"{name}: {largest:.1e}")
    # llama.cpp reads Gemma's activation from a table in float16.
    assert largest < (5e-3 if name.startswith("gemma") else 1e-4)


@pytest.mark.parametrize("strips", [False, True], ids=["llama", "phi 3"])
def test_llama_cpp_encodes_with_a_sentencepiece_vocabulary(tmp_path: Path, strips: bool) -> None:
    tokenizer = sentencepiece(strips=strips)
    config = MODELS["llama"]()
    config.vocab_size = 768
    write_gguf(trained(config, tokenizer).model, tokenizer, tmp_path / "x.gguf", "float32", "toy")
    llama = LlamaCpp.open(tmp_path / "x.gguf")
    messages = [[m for m in row["messages"]] for row in jsonio.read_lines(sample_files()[1])]
    texts = ["<|user|>\n Is  1+1 = 2?\t<|end|> \n<|assistant|>\nYes, ë ☃!<|end|>\n<s>\n</s>"]
    for text in [*texts, *map(tokenizer.render, messages[:32])]:
        assert llama.encode(text) == tokenizer.encode(text).tolist()


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of `sftctl chat` to some prompts."""

    session: ChatSession
    prompts: list[list[int]]
    ids: list[list[int]]
    texts: list[str]

    @classmethod
    def of(cls, run: Path, questions: list[str]) -> "Answers":
        session = ChatSession.open(run, Sampling(max_new_tokens=MAX_NEW_TOKENS))
        stops = stop_ids(session.model, session.tokenizer)
        generated = list[torch.Tensor]()
        generate = session.model.generate
        session.model.generate = lambda **how: generated.append(generate(**how))
        texts, prompts, ids = list[str](), list[list[int]](), list[list[int]]()
        for question in questions:
            session.clear()
            texts.append(session.answer(question))
            text = session.tokenizer.render(session.messages[:1], add_generation_prompt=True)
            prompts.append(session.tokenizer.encode(text).tolist())
            whole = generated.pop()[0].tolist()
            assert whole[: len(prompts[-1])] == prompts[-1]
            answer = whole[len(prompts[-1]) :]
            ids.append([token for token in answer if token not in stops])
        return cls(session, prompts, ids, texts)

    def equal_in(self, llama: LlamaCpp) -> int:
        """How many answers of llama.cpp have the same token ids and the same text."""
        stops = stop_ids(self.session.model, self.session.tokenizer)
        equal = 0
        for prompt, ids, text in zip(self.prompts, self.ids, self.texts, strict=True):
            assert llama.encode(self.session.tokenizer.decode(prompt)) == prompt
            found = llama.answer(prompt, stops, MAX_NEW_TOKENS)
            equal += found == ids and llama.decode(found) == text
        return equal


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_a_preset_answers_the_samples_questions_as_chat_does(folder: Path, preset: str) -> None:
    run, out = folder / preset, folder / f"{preset}-gguf"
    sftctl("train", "--model", preset, "--epochs", 6, "--output-dir", run)
    sftctl("export", run, "--output", out, "--format", "gguf")
    rows = [row["messages"] for row in jsonio.read_lines(sample_files()[0])]
    questions = [m[0]["content"] for m in rows if m[0]["role"] == "user"][:20]
    answers = Answers.of(run, questions)
    assert answers.equal_in(LlamaCpp.open(out / "model.gguf")) == len(questions)
    assert len(set(answers.texts)) > 1


@pytest.fixture(scope="module")
def smollm2_run(shared_data: Path, smollm2: Path, folder: Path) -> Path:
    """Eight steps of four rows of Alpaca."""
    rows = json.loads((shared_data / "alpaca_en_demo.json").read_text())[:40]
    (folder / "alpaca-40.json").write_text(json.dumps(rows))
    sftctl(
        "prepare-data", folder / "alpaca-40.json", "--output", folder / "store",
        "--tokenizer", smollm2, "--max-seq-len", 256, "--val-fraction", 0.2,
    )  # fmt: skip
    sftctl(
        "train", "--model", smollm2, "--data", folder / "store", "--batch-size", 4,
        "--max-steps", 8, "--learning-rate", 2e-5, "--output-dir", folder / "run",
    )  # fmt: skip
    return folder / "run"


def test_smollm2_in_each_type(shared_data: Path, smollm2_run: Path, folder: Path) -> None:
    """Prints the table of docs/serve.md."""
    rows = json.loads((shared_data / "alpaca_en_demo.json").read_text())
    questions = [row["instruction"] for row in rows[100:140] if not row["input"]]
    answers = Answers.of(smollm2_run, questions[:8])
    whole = [[*prompt, *ids] for prompt, ids in zip(answers.prompts, answers.ids, strict=True)]
    with torch.no_grad():
        ours = [answers.session.model(torch.tensor([ids])).logits[0] for ids in whole]
    columns = ["`--dtype`", "size", "logits differ by at most", "on average"]
    columns += ["equal greedy tokens", "equal answers"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for dtype in ("f32", "f16", "bf16", "q8_0"):
        file = folder / dtype / "model.gguf"
        sftctl("export", smollm2_run, "--output", file.parent, "--format", "gguf", "--dtype", dtype)
        llama = LlamaCpp.open(file)
        pairs = [(a, llama.logits(ids)) for a, ids in zip(ours, whole, strict=True)]
        difference = torch.cat([(a - b).abs().flatten() for a, b in pairs])
        greedy = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs]).float().mean()
        equal = answers.equal_in(llama)
        print(
            f"| {dtype} | {file.stat().st_size / 1e6:.0f} MB | {difference.max():.2g} | "
            f"{difference.mean():.2g} | {greedy:.1%} | {equal} of {len(whole)} |"
        )
        assert greedy > 0.95
        if dtype == "f32":
            assert difference.max() < 1e-3 and equal == len(whole)
