"""Parameters: typed, checked, and errors that name the key."""

from __future__ import annotations

import re

import pytest

from vtp import config, recipes
from vtp.config import ROOT, ConfigError, load


def test_the_committed_file_passes():
    params = load()
    assert params.sizes == params.model.sizes[params.model.size]


@pytest.mark.trap
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modle.size=x", "modle is not a parameter; did you mean model?"),
        ("pretrain.stepps=3", "pretrain.stepps is not a parameter; did you mean steps?"),
        ("pretrain.steps.x=3", "pretrain.steps.x is not a parameter; what is above it is one value"),
        ("pretrain.objective=ae,ssl+ae", "in quotes of its own"),
        ("data.path=/data/{0..9}.tar", "in quotes of its own"),
        ("--help", "write key=value"),
        ("model.size=huge", "model.size=huge"),
        ("pretrain.steps=ten", "pretrain.steps must be a whole number"),
        ("pretrain.steps=0", "pretrain.steps=0"),
        ("pretrain.steps=1.5", "pretrain.steps"),
        ("pretrain.steps=null", "pretrain.steps must be a whole number, not null"),
        ("pretrain.optimizer.rate=true", "pretrain.optimizer.rate must be a number"),
        ("+foo=1", "foo is not a parameter"),
        ("pretrain.ssl_batch=48", "pretrain.ssl_batch=48"),
        ("tokenizer.patch=24", "tokenizer.patch=24"),
        ("tokenizer.source=/weights", "must be train or pretrained:/absolute/path"),
        ("tokenizer.source=pretrained:weights", "tokenizer.source=weights must be absolute"),
        ("pretrain.init_from=weights", "pretrain.init_from=weights must be absolute"),
        ("data.source=parquet", "data.path is null"),
        ("data.path=here", "must be absolute"),
        ("data.path=/photographs", "data.path=/photographs is not read by data.source=scenes"),
        ("data.class_names=names.txt", "data.class_names=names.txt must be absolute"),
        ("data.mode=index", "data.source=scenes has none"),
        ("data.store_size=32", "data.store_size=32 is below data.image_size"),
        ("data.templates=[a dog]", "data.templates: 'a dog' must hold {} once"),
        ("evaluate.templates=[a dog]", "evaluate.templates: 'a dog' must hold {} once"),
        ("evaluate.templates=[]", "evaluate.templates is empty"),
        ("data.train_samples=null", "must be numbers for data.source=scenes"),
        ("model.sizes.small.encoder.heads=5", "model.sizes.small.encoder.width"),
        ("dit.heads=5", "does not divide by 20, as dit.heads=5 needs"),
        ("~pretrain.steps", "pretrain.steps is missing"),
        ("+pretrain.stepz=3", "did you mean steps?"),
        ("~pretrain.weights.clip", "pretrain.weights"),
        ("evaluate.features=vgg", "choose one of"),
        ("pretrain.ssl.mask_ratio=[0.5,0.1]", "must rise"),
        ("pretrain.ssl.teacher_momentum.end=1.5", "pretrain.ssl.teacher_momentum goes from 0.98 to 1.5"),
        ("pretrain.ssl.teacher_temperature.start=0.0", "both must be above 0"),
        ("finetune_decoder.adversarial_start=4", "lies before finetune_decoder.discriminator_start=20"),
        ("sample.guidance_interval=[0.9,0.2]", "sample.guidance_interval=[0.9, 0.2] must rise"),
        ("pretrain.optimizer.rate=nan", "pretrain.optimizer.rate=nan must be a finite number"),
        ("dit.time_mu=inf", "dit.time_mu=inf must be a finite number"),
        ("pretrain.latent_noise=0.2", "pretrain.latent_noise=0.2 is for pretrain.frozen=true"),
    ],
)
def test_a_bad_value_gives_one_line_that_names_it(override, words):
    with pytest.raises(ConfigError) as caught:
        load([override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_given_tokenizer_is_used_as_it_is_or_trained_on_not_both():
    assert load().given_tokenizer is None
    assert str(load(["pretrain.init_from=/a/b-c"]).given_tokenizer) == "/a/b-c"
    # Its own patch counts, which is known when it is read.
    assert str(load(["tokenizer.source=pretrained:/a/b", "tokenizer.patch=24"]).given_tokenizer) == "/a/b"
    with pytest.raises(ConfigError, match=r"tokenizer\.source and pretrain\.init_from both name a tokenizer"):
        load(["tokenizer.source=pretrained:/a/b", "pretrain.init_from=/a/b"])


def test_tars_may_lie_elsewhere_and_need_some_for_validation():
    tars = ["data.source=webdataset", "data.train_samples=null", "data.validation_samples=null", "data.mode=index"]
    url = "data.path='s3://bucket/{000..331}.tar'"
    assert load([*tars, url, "data.validation_path=/here/*.tar"]).data.path == "s3://bucket/{000..331}.tar"
    with pytest.raises(ConfigError, match=r"data.validation_path is null"):
        load([*tars, url])
    with pytest.raises(ConfigError, match="must be null for webdataset"):
        load([*tars, url, "data.validation_path=/here/*.tar", "data.train_samples=3"])
    with pytest.raises(ConfigError, match="must be absolute"):
        load(["data.source=parquet", "data.path=s3://bucket/folder"])


def test_given_latents_and_transformers_are_paths():
    assert load().given_latents is None
    assert load().given_dit is None
    assert str(load(["latents.source=pretrained:/a/b"]).given_latents) == "/a/b"
    assert str(load(["dit.init_from=/a/b.pt"]).given_dit) == "/a/b.pt"
    assert str(load(["dit.source=pretrained:/a/b.pt", "dit.patch=3"]).given_dit) == "/a/b.pt"  # its own patch counts
    for overrides, message in (
        (["dit.source=pretrained:/a/b", "dit.init_from=/a/b"], r"dit\.source and dit\.init_from both name a dit"),
        (["dit.source=/a/b"], r"dit\.source=/a/b must be train or pretrained:/absolute/path"),
        (["latents.source=train"], r"latents\.source=train must be extract or pretrained:/absolute/path"),
        (["dit.init_from=b.pt"], r"dit\.init_from=b\.pt must be absolute"),
        (["latents.source=pretrained:b"], r"latents\.source=b must be absolute"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(overrides)


@pytest.mark.trap
def test_a_frozen_trunk_drops_no_paths():
    frozen = ["pretrain.frozen=true", "pretrain.objective=ae", "pretrain.init_from=/a/b"]
    load([*frozen, "pretrain.latent_noise=0.2"])
    with pytest.raises(ConfigError, match=r"pretrain\.drop_path=0\.1 is for trunks that learn"):
        load([*frozen, "pretrain.drop_path=0.1"])


def test_numbers_in_exponent_form_are_floats(tmp_path):
    assert load(["pretrain.optimizer.rate=3e-4"]).pretrain.optimizer.rate == pytest.approx(3e-4)
    file = tmp_path / "params.yaml"
    file.write_text(re.sub(r"\brate: [\d.e-]+", "rate: 1e-3", (ROOT / "params.yaml").read_text()))
    assert load(file=file).pretrain.optimizer.rate == 0.001  # which YAML alone reads as text


@pytest.mark.trap
def test_a_slip_in_the_file_is_named(tmp_path):
    file = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    for wrong, words in (("stepz: 4", "did you mean steps?"), ("steps: 4.5", "must be a whole number"), ("steps: 1e3", "steps")):
        file.write_text(re.sub(r"\bsteps: 440\b", wrong, text, count=1))
        with pytest.raises(ConfigError, match=re.escape(words)):
            load(file=file)


@pytest.mark.trap
def test_an_interpolation_is_refused(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text().replace("seed: 0", "seed: ${dit.steps}", 1))
    with pytest.raises(ConfigError, match="interpolation"):
        load(file=file)


@pytest.mark.trap
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_applies_and_keeps_comments(name, tmp_path):
    file = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text()
    file.write_text(before)
    asked = {"demo": [], "gpu-64": [], "vavae": ["pretrain.align.teacher=/a"], "frozen": ["pretrain.init_from=/a"], "kl-vae": []}
    recipes.apply(name, tuple(asked.get(name, ["data.path=/somewhere"])), file)
    config.load(file=file)
    comments = [line.split("#", 1)[1].strip() for line in before.splitlines() if "#" in line]
    after = file.read_text()
    assert all(comment in after for comment in comments)


@pytest.mark.parametrize(("name", "places"), [("demo", 4), ("gpu-64", 8), ("vtp-s", 16)])
def test_the_classic_autoencoder_takes_its_grid_of_latents_from_the_recipe_below(name, places, tmp_path):
    from vtp.models.convolutional import config_of

    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    recipes.apply(name, () if name in ("demo", "gpu-64") else ("data.path=/somewhere",), file)
    before = load(file=file)
    recipes.apply("kl-vae", (), file)
    params = load(file=file)
    assert (params.tokenizer.network, params.pretrain.objective) == ("convolutional", "ae+kl")
    form = config_of(params.tokenizer, params.data.image_size)
    assert params.data.image_size // 2 ** (len(form["block_out_channels"]) - 1) == places
    assert form["latent_channels"] == before.tokenizer.latent_channels
    assert (params.pretrain.optimizer, params.dit, params.finetune_decoder) == (
        before.pretrain.optimizer,
        before.dit,
        before.finetune_decoder,
    )


def test_the_recipe_demo_is_the_committed_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    recipes.apply("gpu-64", file=file)
    assert recipes.apply("demo", file=file)
    assert load(file=file) == load()


def test_a_recipe_changes_the_lines_it_must_and_no_others(tmp_path):
    file = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text()
    file.write_text(before)
    recipes.apply("demo", ["dit.steps=7"], file=file)
    changed = [(old, new) for old, new in zip(before.splitlines(), file.read_text().splitlines(), strict=True) if old != new]
    assert [new.split() for _, new in changed] == [["steps:", "7"]]


def test_an_unknown_recipe_or_key_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no recipe nothing"):
        recipes.apply("nothing")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    (tmp_path / "odd.yaml").write_text("pretrain: {stepz: 3}\n")
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(ConfigError, match=r"pretrain\.stepz"):
        recipes.apply("odd", file=file)
    assert file.read_text() == (ROOT / "params.yaml").read_text()


def test_a_recipe_that_lacks_a_value_says_where_to_write_it(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(ConfigError, match=r"data\.path is null.*`python -m vtp recipe vtp-s key=value`"):
        recipes.apply("vtp-s", file=file)
    with pytest.raises(ConfigError, match=r"^pretrain\.objektive=ae: pretrain\.objektive is not a .* did you mean objective\?$"):
        recipes.apply("demo", ("pretrain.objektive=ae",), file)


def test_an_override_of_a_recipe_is_read_as_the_file_is(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    recipes.apply("demo", ("pretrain.optimizer.rate=1e-4", "run.name=a, b"), file)
    params = load(file=file)
    assert params.pretrain.optimizer.rate == 1e-4
    assert params.run.name == "a, b"


def test_a_table_in_the_place_of_a_value_is_named(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(ConfigError, match=r"seed is one value, not a table of x"):
        recipes.apply("demo", ("seed.x=1",), file)
    with pytest.raises(ConfigError, match=r"^sample\.guidance_interval=\[0\.9 cannot be read as YAML"):
        recipes.apply("demo", ("sample.guidance_interval=[0.9",), file)


@pytest.mark.trap
def test_a_file_that_is_no_yaml_is_named(tmp_path):
    from vtp import recipes

    file = tmp_path / "params.yaml"
    for content, words in (("a: [", "params.yaml cannot be read as YAML"), (None, r"params\.yaml does not exist")):
        file.unlink(missing_ok=True)
        if content:
            file.write_text(content)
        for reader in (load, recipes.apply):
            with pytest.raises(ConfigError, match=words):
                reader("demo", file=file) if reader is recipes.apply else reader(file=file)


@pytest.mark.parametrize("template", ["a {} {x}", "a {} {0}", "a {} {"])
def test_a_template_has_one_brace(template):
    from vtp.config_data import check_templates

    with pytest.raises(ConfigError, match="another brace"):
        check_templates("evaluate.templates", (template,))
    check_templates("evaluate.templates", ("a {} in {{braces}}",))
