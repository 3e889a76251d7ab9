"""`atmc-tool verify --signature`: by real keys and signatures of model-signing, and what its command line makes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli, environment_without, run_atmc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from atmc_tool.cli.signature import check_signature
from atmc_tool.errors import InputError, UsageError

pytestmark = pytest.mark.xdist_group("digits_run")

BRIEF = "-n 60 --steps 3 --restarts 1 --set evaluation.square_queries=5"
SIGNED = "--signature model.sig --public-key key.pub"


def make_key(folder: Path, name: str = "key") -> None:
    """NAME.pem and NAME.pub in `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)


def sign(path: Path, signature: Path, key: Path) -> None:
    """As the guide says it."""
    options = ["--private_key", str(key), "--signature", str(signature)]
    subprocess.run([sys.executable, "-m", "model_signing", "sign", "key", str(path), *options], check=True)


@pytest.fixture(scope="module")
def signed(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, its signature and the keys."""
    folder = tmp_path_factory.mktemp("signed")
    for name in ("model.onnx", "model.atmc"):
        shutil.copy(digits_run / "atmc-run" / name, folder)
    make_key(folder)
    sign(folder / "model.onnx", folder / "model.sig", folder / "key.pem")
    return folder


@pytest.fixture
def release(signed: Path, tmp_path: Path) -> Path:
    """A copy of `signed` to change."""
    shutil.copytree(signed, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_signed_file_is_verified_and_a_changed_one_refused(release: Path, cli: Cli) -> None:
    (release / "policy.yaml").write_text("min_robust: 0.01\nrequired: [signature]\n")
    line = f"verify model.onnx {BRIEF} --policy policy.yaml --cyclonedx model.cdx.json"
    done = cli(f"{line} {SIGNED} --json", release)
    assert done.code == 0, done.err
    checks = {check["name"]: check for check in json.loads(done.out)["verdict"]["checks"]}
    assert checks["signature"]["status"] == "passed"
    bom = (release / "model.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
    assert "model.cdx.json" in (release / "manifest.sha256").read_text()

    done = cli(f"{line} -q", release)
    assert done.code == 5
    assert "required and not passed: signature (not applied)" in done.error

    with (release / "model.onnx").open("ab") as file:
        file.write(b"\x00")
    for name in ("verify.json", "manifest.sha256", "model.cdx.json"):
        (release / name).unlink(missing_ok=True)
    done = cli(f"{line} {SIGNED}", release)
    assert done.code == 4
    assert "model.sig is no signature of model.onnx by key.pub" in done.error
    assert not (release / "verify.json").exists()


def test_the_digest_is_signed_and_not_the_name(release: Path) -> None:
    path = (release / "model.onnx").rename(release / "renamed.onnx")
    content = path.read_bytes()
    assert check_signature(path, content, release / "model.sig", release / "key.pub").passed
    assert check_signature(path, content, None, None).passed is None


def test_what_is_measured_is_what_was_signed(release: Path) -> None:
    """The file is exchanged once its bytes are read: those are tried, and not what lies there by then."""
    path, signature, key = (release / name for name in ("model.onnx", "model.sig", "key.pub"))
    content = path.read_bytes()
    path.write_bytes(b"exchanged")
    assert check_signature(path, content, signature, key).passed
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no signature of"):
        check_signature(path, b"exchanged", signature, key)


def test_what_is_no_signature_of_the_file_by_the_key_is_refused(release: Path) -> None:
    model, signature, key = (release / name for name in ("model.onnx", "model.sig", "key.pub"))
    content = model.read_bytes()
    make_key(release, "other")
    sign(release / "model.atmc", release / "source.sig", release / "key.pem")
    bundle = json.loads(signature.read_text())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    (release / "forged.sig").write_text(json.dumps(bundle))
    (release / "damaged.sig").write_bytes(signature.read_bytes()[:-20])
    (release / "damaged.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    for other, by in (
        (signature, release / "other.pub"),
        (release / "source.sig", key),
        (release / "forged.sig", key),
        (release / "damaged.sig", key),
        (signature, release / "damaged.pub"),
        (signature, release / "key.pem"),
    ):
        with pytest.raises(InputError, match="is no signature of"):
            check_signature(model, content, other, by)
    with pytest.raises(InputError, match=r"missing\.sig"):
        check_signature(model, content, release / "missing.sig", key)
    with pytest.raises(UsageError, match="--signature alone says nothing: expected --public-key with it"):
        check_signature(model, content, signature, None)
    with pytest.raises(UsageError, match="--public-key alone says nothing"):
        check_signature(model, content, None, key)


def test_without_the_package_it_says_how_to_install_it(release: Path, tmp_path: Path) -> None:
    environment = environment_without(("model_signing",), tmp_path / "packages")
    done = run_atmc(f"verify model.onnx {SIGNED}", release, environment)
    assert done.code == 3
    assert "pip install 'atmc-tool[signing]'" in done.error
