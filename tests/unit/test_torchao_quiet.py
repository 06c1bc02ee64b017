"""A remark on stderr would land in a lab's compared outputs."""

import subprocess
import sys


def test_loading_with_transformers_says_nothing_about_torchao():
    code = (
        "from inferlab.quant.torchao_linear import preload; preload(); "
        "import torchao.prototype.mx_formats, torchao.quantization; "
        "from transformers import AutoModelForCausalLM"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and not found.stderr
