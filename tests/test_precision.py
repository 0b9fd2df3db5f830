"""`choose()`: bfloat16 where the device has it, and the reason in words."""

import pytest

from tfpipe.transfer import precision


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends to be one: machine(gpus=[...], cpu=text of /proc/cpuinfo or None)."""

    def pretend(gpus=(), cpu=None):
        path = tmp_path / "cpuinfo"
        if cpu is not None:
            path.write_text(cpu, "utf-8")
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
        monkeypatch.setattr(precision, "gpu_capabilities", lambda: list(gpus))
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=precision.cpu_flags: flags(path))

    return pretend


def core(*flags):
    return f"processor\t: 0\nmodel name\t: amx_bf16 avx512_bf16\nflags\t\t: fpu {' '.join(flags)}\nbugs\t\t: spectre\n\n"


@pytest.mark.parametrize(
    ("cpu", "policy", "word"),
    [
        (core("avx512f", "amx_bf16", "avx512_bf16"), "mixed_bfloat16", "AMX"),
        (core("avx512f", "avx512_bf16"), "mixed_bfloat16", "AVX512-BF16"),
        (core("avx2", "avx512f"), "float32", "no bfloat16"),
        (core("amx_bf16_other", "xavx512_bf16"), "float32", "no bfloat16"),
        (core("avx512_bf16") + core("avx2"), "float32", "no bfloat16"),  # some cores have it, some not
        ("Features\t: fp asimd bf16\n", "float32", "no bfloat16"),
        ("", "float32", "no bfloat16"),
        (None, "float32", "no bfloat16"),
    ],
)
def test_processors(machine, cpu, policy, word):
    machine(cpu=cpu)
    chosen, reason = precision.choose("auto")
    assert chosen == policy
    assert word in reason


@pytest.mark.parametrize(
    ("gpus", "policy", "word"),
    [
        ([(8, 0)], "mixed_bfloat16", "8.0"),
        ([(9, 0), (10, 1)], "mixed_bfloat16", "8.0"),
        ([(7, 5)], "float32", "7.5"),
        ([(9, 0), (7, 5)], "float32", "7.5, 9.0"),
        ([None], "float32", "unknown"),
    ],
)
def test_gpus_go_before_the_processor(machine, gpus, policy, word):
    for cpu in (core("amx_bf16"), core("avx2")):
        machine(gpus=gpus, cpu=cpu)
        chosen, reason = precision.choose("auto")
        assert chosen == policy
        assert word in reason


def test_without_onednn_the_processors_bfloat16_is_not_used(machine, monkeypatch):
    machine(cpu=core("amx_bf16"))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    chosen, reason = precision.choose("auto")
    assert chosen == "float32"
    assert "TF_ENABLE_ONEDNN_OPTS=0" in reason


@pytest.mark.parametrize("name", precision.POLICIES)
def test_a_name_is_taken_on_any_machine(machine, name):
    for gpus in ([], [(7, 0)], [(9, 0)]):
        machine(gpus=gpus)
        assert precision.choose(name) == (name, "asked for")


@pytest.mark.parametrize(
    ("name", "message"), [("mixed_float16", "loss scaling"), ("bfloat16", "got 'bfloat16'"), ("", "got ''")]
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        precision.choose(name)


@pytest.mark.tf
def test_this_machine_has_a_policy_that_keras_knows():
    import keras

    policy, reason = precision.choose("auto")
    assert policy in precision.POLICIES
    assert keras.DTypePolicy(policy).variable_dtype == "float32"
    assert reason
