"""data2vec's files: fairseq's with what they hold beside weights, and transformers' models, both ways."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import OF_WAVES, OF_WORDS, TINY_DATA2VEC, assert_close, made, quiet_trainer, random_images, random_series
from torch import Tensor, nn

from jepa_lightning import RECIPES, Data2Vec, Data2Vec2, load_encoder, save_for_transformers
from jepa_lightning.cli import main
from jepa_lightning.networks import PostNormVisionTransformer, WaveTransformer, WordTransformer

GOLDEN = Path(__file__).parent / "golden" / "data2vec"
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
VISION = {"image_size": 32, "patch_size": 8, "use_shared_relative_position_bias": True, "use_mean_pooling": False}
AUDIO: dict[str, Any] = {"conv_dim": (8, 8, 12), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)}
AUDIO |= {"conv_pos_kernel_size": 4, "num_conv_pos_embeddings": 3, "num_conv_pos_embedding_groups": 2}
TEXT = {"vocab_size": 40, "max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 3}


def perturbed(network: nn.Module, seed: int = 0) -> Any:
    """With weights that all matter, and the padding's still zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for embedding in network.modules():
            if isinstance(embedding, nn.Embedding) and embedding.padding_idx is not None:
                embedding.weight[embedding.padding_idx] = 0.0
    return network.eval()


def theirs(kind: str) -> tuple[Any, dict[str, Tensor], Tensor, Tensor | None, Tensor | None]:
    """A model of transformers', its inputs; and observations, which steps and which tokens there are, for ours."""
    import transformers

    if kind == "vision":
        model = transformers.Data2VecVisionModel(transformers.Data2VecVisionConfig(**SIZES | VISION))
        images = random_images(3, 32)
        return perturbed(model), {"pixel_values": images}, images, None, None
    if kind == "audio":
        model = transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig(**SIZES | AUDIO))
        waves, valid = random_series(3, 400, 1), torch.arange(400) < torch.tensor([[400], [310], [205]])
        waves = waves * valid.unsqueeze(-1)
        # The convolutions of a wave of so many steps give so many frames.
        frames = torch.arange(19) < torch.tensor([[19], [15], [9]])
        return perturbed(model), {"input_values": waves[..., 0], "attention_mask": valid.long()}, waves, valid, frames
    model = transformers.Data2VecTextModel(transformers.Data2VecTextConfig(**SIZES | TEXT))
    words = torch.randint(4, 40, (3, 10), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(10) < torch.tensor([[10], [7], [4]])
    words = words.masked_fill(~valid, 3)
    return perturbed(model), {"input_ids": words, "attention_mask": valid.long()}, words, valid, valid


@pytest.mark.parametrize("kind", ["vision", "audio", "text"])
def test_transformers(kind: str, tmp_path: Path) -> None:
    """Their features are ours, and the other way round."""
    import transformers

    model, inputs, observation, valid, tokens = theirs(kind)
    expected = model(**inputs).last_hidden_state
    expected = expected[:, 1:] if kind == "vision" else expected
    model.save_pretrained(tmp_path / "theirs")
    encoder = load_encoder(tmp_path / "theirs")
    if valid is not None:
        assert torch.equal(encoder.patch_embed.valid(valid), tokens)
    there = torch.ones(expected.shape[:2], dtype=torch.bool) if tokens is None else tokens
    assert_close(encoder(observation, None, tokens)[there], expected[there], "our features")
    save_for_transformers(perturbed(encoder, seed=1), tmp_path / "ours")
    again = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "ours").eval()
    found = again(**inputs).last_hidden_state
    found = found[:, 1:] if kind == "vision" else found
    assert not torch.allclose(found[there], expected[there], atol=1e-2)
    assert_close(found[there], encoder(observation, None, tokens)[there], "their features")
    assert_close(load_encoder(tmp_path / "ours")(observation, None, tokens)[there], found[there], "and back")


def test_the_command_line_says_what_to_give(tmp_path: Path) -> None:
    """Of a folder of transformers' there is no module to read words with, and `jepa evaluate` says so."""
    theirs("text")[0].save_pretrained(tmp_path / "theirs")
    recipe = f"--config={RECIPES / 'data2vec' / 'sentences.yaml'}"
    with pytest.raises(ValueError, match=r"give that, such as"):
        main(["evaluate", recipe, f"--ckpt_path={tmp_path / 'theirs'}", f"--trainer.default_root_dir={tmp_path}"])


def test_what_transformers_has_not(tmp_path: Path) -> None:
    import transformers

    per_block = VISION | {"use_shared_relative_position_bias": False, "use_relative_position_bias": True}
    model = transformers.Data2VecVisionModel(transformers.Data2VecVisionConfig(**SIZES | per_block))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"use_relative_position_bias=True"):
        load_encoder(tmp_path)
    sizes: dict[str, Any] = OF_WAVES["encoder"]["init_args"]
    with pytest.raises(ValueError, match="alibi"):
        save_for_transformers(WaveTransformer(**sizes | {"alibi": True}), tmp_path)
    with pytest.raises(ValueError, match="alibi"):
        save_for_transformers(WordTransformer(20, 8, 16, 1, 2, mask_word=3, alibi=True), tmp_path)
    with pytest.raises(ValueError, match="PostNormVisionTransformer"):
        save_for_transformers(PostNormVisionTransformer((16, 16), (4, 4), 3, 16, 1, 2), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vision", "v2_image", "audio", "v2_audio", "text", "v2_text"])
def test_a_file_of_fairseqs(name: str, tmp_path: Path) -> None:
    """Settings and dictionaries beside the weights are not read; nothing that a file names is imported."""
    method: Any = Data2Vec2 if name.startswith("v2") else Data2Vec
    options = {"num_layers": 2} | ({"cls_weight": 0.1} if name == "v2_image" else {})
    options |= {} if name == "v2_audio" else {"num_heads": 2}
    expected = method.from_official(str(GOLDEN / name / "checkpoint.pt"), **options).state_dict()
    module = types.ModuleType("fairseq.data.dictionary")
    exec("class Dictionary:\n    pass", module.__dict__)
    module.Dictionary.__module__ = "fairseq.data.dictionary"
    sys.modules |= {"fairseq": types.ModuleType("fairseq"), "fairseq.data": types.ModuleType("fairseq.data")}
    sys.modules["fairseq.data.dictionary"] = module
    words = module.Dictionary()
    words.symbols = ["<s>", "<pad>"]
    checkpoint = torch.load(GOLDEN / name / "checkpoint.pt", weights_only=True)
    torch.save(checkpoint | {"cfg": {"task": "audio"}, "task_state": {"source": words}}, tmp_path / "whole.pt")
    for each in ("fairseq.data.dictionary", "fairseq.data", "fairseq"):
        del sys.modules[each]
    found = method.from_official(str(tmp_path / "whole.pt"), **options).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('run')",)


def test_files_that_are_refused(tmp_path: Path) -> None:
    """What runs code, beside settings too; the other version's; and sizes that nothing tells."""
    torch.save({"model": {}, "cfg": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="more than weights"):
        Data2Vec.from_official(str(tmp_path / "evil.pt"))
    with pytest.raises(ValueError, match=r"2\.0 images.*Data2Vec loads"):
        Data2Vec.from_official(str(GOLDEN / "v2_image" / "checkpoint.pt"), num_heads=2)
    with pytest.raises(ValueError, match=r"for waves.*Data2Vec2 loads"):
        Data2Vec2.from_official(str(GOLDEN / "audio" / "checkpoint.pt"), num_heads=2)
    with pytest.raises(ValueError, match=r"24 wide.*num_heads"):
        Data2Vec.from_official(str(GOLDEN / "audio" / "checkpoint.pt"))
    with pytest.raises(ValueError, match=r"strides=\[5, 2\].*3 convolutions"):
        Data2Vec.from_official(str(GOLDEN / "audio" / "checkpoint.pt"), num_heads=2, strides=[5, 2])


@pytest.mark.parametrize("name", ["data2vec", "data2vec 2.0", "data2vec of waves", "data2vec 2.0 of words"])
def test_encoders_of_our_checkpoints(name: str, tmp_path: Path) -> None:
    """`load_encoder` rebuilds them, whether they were chosen by their class or are the default."""
    module = made(name)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    encoder = load_encoder(tmp_path / "it.ckpt")
    assert type(encoder) is type(module.target_encoder)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), module.target_encoder.parameters(), strict=True))


def test_the_students_tokenizer_starts_the_teachers(tmp_path: Path) -> None:
    """Of a training that starts from an encoder, the teacher is a copy, part by part."""
    save_for_transformers(perturbed(made("data2vec").context_encoder), tmp_path)
    module = Data2Vec(**TINY_DATA2VEC, weights={"context_encoder": str(tmp_path)})
    with pytest.warns(UserWarning, match="predictor"):
        quiet_trainer(tmp_path, max_steps=0).fit(module, torch.utils.data.DataLoader(random_images(4), 4))
    for name, value in module.context_encoder.state_dict().items():
        assert torch.equal(module.target_encoder.state_dict()[name], value), name
    assert module.context_encoder.bias.table.any()


def test_words_by_their_numbers() -> None:
    words = WordTransformer(**OF_WORDS["encoder"]["init_args"])
    with pytest.raises(ValueError, match=r"0 to 63.*64"):
        words(torch.full((1, 3), 64))
    with pytest.raises(ValueError, match=r"at most 12 words.*\[1, 13\]"):
        words(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="mask_word=64"):
        WordTransformer(**OF_WORDS["encoder"]["init_args"] | {"mask_word": 64})
