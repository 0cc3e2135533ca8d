//! The longer texts of `--help`.

pub(crate) const TOP: &str = "\
Start here:
  chainette init demo                                   a chain that runs at once
  chainette run demo/chain.yaml demo/inputs.jsonl out   run it
  chainette COMMAND --help                              more on a command";

pub(crate) const TOP_LONG: &str = "\
Start here:
  chainette init demo                                   a chain that runs at once
  chainette run demo/chain.yaml demo/inputs.jsonl out   run it
  chainette COMMAND --help                              more on a command

What was asked for goes to stdout, progress and problems go to stderr.

Exit codes:
  0    all done
  1    the run failed or stopped; the same command resumes it
  2    bad usage, chain or input; nothing was run, nothing was written
  3    finished, and some rows failed (they are in OUT/errors/)
  130  interrupted by Ctrl-C or SIGTERM; the same command resumes it

Environment:
  NO_COLOR       no colours, when set to anything
  CHAINETTE_LOG  developer logs on stderr, such as `debug` or `chainette=trace`
  API keys stand in the variables that engines name with `api_key_env`";

pub(crate) const RUN: &str = "\
Examples:
  chainette run chain.yaml rows.jsonl out
  chainette run chain.yaml rows.jsonl out --limit 100 --set tone=harsh
  chainette run chain.yaml rows.jsonl out --engines engines.yaml --max-errors 5%";

pub(crate) const RUN_LONG: &str = "\
Examples:
  chainette run chain.yaml rows.jsonl out
      run the chain over every row; the same command again resumes an unfinished run
  chainette run chain.yaml rows.jsonl out --limit 100 --set tone=harsh
      try the first 100 rows with another value of a variable
  chainette run chain.yaml rows.jsonl out --engines engines.yaml --max-errors 5%
      take engines from a file of their own; stop when more than 5 percent of the rows failed

Exit codes:
  0    all rows done, or OUT was finished before, whatever its errors/ hold
  1    the run failed or stopped; the same command resumes it. It stops when
       the first 100 rows all fail, unless --max-errors says otherwise
  2    bad usage, chain or input; nothing was run, nothing was written
  3    finished, and some rows are in OUT/errors/
  130  interrupted by Ctrl-C or SIGTERM; the same command resumes it

Environment:
  NO_COLOR       no colours, when set to anything
  CHAINETTE_LOG  developer logs on stderr, such as `debug` or `chainette=trace`
  API keys stand in the variables that engines name with `api_key_env`";

pub(crate) const INSPECT: &str = "\
Examples:
  chainette inspect chain.yaml
  chainette inspect chain.yaml --input rows.jsonl
  chainette inspect chain.yaml --format mermaid";

pub(crate) const INSPECT_LONG: &str = "\
Examples:
  chainette inspect chain.yaml
      the chain as a tree, and everything that is wrong with it
  chainette inspect chain.yaml --input rows.jsonl
      lead the first 100 rows up to the prompts of the first Steps: which would fail, and why?
  chainette inspect chain.yaml --format mermaid
      the graph, for a README

Exit codes:
  0  the chain can run; with --input: none of the rows would fail so far
  2  the chain or the input cannot be used
  3  with --input: some of the rows would fail";

pub(crate) const VERIFY: &str = "\
Examples:
  chainette verify out
  chainette verify out --json";

pub(crate) const VERIFY_LONG: &str = "\
Examples:
  chainette verify out
      is everything there, once, as it was written? Rows in out/errors/ are accounted for
  chainette verify out --json
      the same for programs: fates per node, and each problem with its file, line and row

Exit codes:
  0  proven
  1  something is wrong; it says what, and what to do
  2  there is no run in OUT";

pub(crate) const ENGINES: &str = "\
States:
  ready          takes requests for the model
  loading        is there and still loads the model
  unreachable    does not answer
  unauthorised   wants another API key, or one at all
  model unknown  serves other models
  unclear        answers, but not in the way its backend does
  not running    chainette starts it when a row needs it
  missing        chainette would start it, and cannot: it says what is missing
Engines that `engine up` keeps are ready, starting, draining or failed.

Exit codes:
  0  the table was shown, whatever it says
  2  the chain cannot be used";

pub(crate) const DIFF: &str = "\
Examples:
  chainette diff out-before out-after
  chainette diff out-before out-after --sample 50 --json";

pub(crate) const DIFF_LONG: &str = "\
Examples:
  chainette diff out-before out-after
      what a changed prompt, model or variable changed in the outputs
  chainette diff out-before out-after --sample 50 --json
      the same for programs, with the first 50 rows of each node that differ

Numbers are compared by their value (1.10 is 1.1), objects whatever the order
of their keys. Where one of the runs wrote Parquet, a field that is null is one
that was left out, and decimal fractions are doubles. Both runs must be
finished. Memory does not grow with the number of rows.

Exit codes:
  0  the outputs are the same, however the runs were made
  1  the outputs differ: a row, a field or a failure
  2  an OUT is missing, not finished or damaged, or stdout takes nothing";

pub(crate) const SCHEMA: &str = "\
For VS Code (YAML extension) and other editors with yaml-language-server:
  chainette schema > chain.schema.json
and on top of the chain:
  # yaml-language-server: $schema=chain.schema.json";

pub(crate) const COMPLETIONS: &str = "\
For bash, zsh and fish:
  chainette completions bash > ~/.local/share/bash-completion/completions/chainette
  chainette completions zsh > ~/.zfunc/_chainette
  chainette completions fish > ~/.config/fish/completions/chainette.fish";

pub(crate) const INIT: &str = "\
Writes chain.yaml, inputs.jsonl, chain.schema.json (for editors) and
.gitignore. The chain runs as it is, without a model; a Step that asks one
stands in it as a comment.

Exit codes:
  0  written
  1  a file could not be written
  2  a file is there already; nothing was written";

pub(crate) const CLEAN: &str = "\
Exit codes:
  0  given back, or there was nothing to give back
  1  a file could not be removed
  2  no run, one that is not finished, or one that is in use; nothing was removed";

pub(crate) const ENGINE: &str = "\
An engine without an `endpoint` (backends llamacpp, vllm, tgi) is a server that chainette starts.
`run` does all of this by itself; these commands are for those who want to do it beforehand.";

pub(crate) const ENGINE_PROVISION: &str = "\
Examples:
  chainette engine provision chain.yaml --dry-run
      what is missing, and the command line, memory and port of each server
  chainette engine provision engines.yaml --pool small
      fetch and verify the model of one engine

Models of the hub come into the cache that its own tools use (HF_HOME); HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE are heeded. Digests that were checked are kept below XDG_STATE_HOME/chainette.

Exit codes:
  0    everything is there
  1    something could not be fetched, or is not what it should be
  2    something is missing, or the file has problems; nothing was written";

pub(crate) const ENGINE_UP: &str = "\
Examples:
  chainette engine up chain.yaml
      start the servers of a chain's engines; runs of the chain then use them
  chainette engine up engines.yaml --pool small --idle-timeout 30min
      one of them, until no run has used it for half an hour
  chainette engine up engines.yaml --foreground
      the same in this process, for systemd and containers; SIGTERM stops the servers

What is up already stays as it is. Their files are in XDG_STATE_HOME/chainette/engines
(~/.local/state/chainette/engines), for this user only; everything listens on loopback unless `host` says otherwise.

Exit codes:
  0  all are ready; with --foreground: stopped
  1  one failed, or is up with other settings; nothing that this command started is left
  2  something is missing, or the file has problems; nothing was started";

pub(crate) const ENGINE_STATUS: &str = "\
States:
  ready     takes requests
  starting  is being started, or started again
  draining  takes no new requests
  failed    ended or did not start; it is tried again after a while
  stale     whoever kept it was killed; it is cleaned up now
  down      is declared by FILE and not up: a run starts its own

Exit codes:
  0  the table was shown, whatever it says
  2  the file has problems";

pub(crate) const ENGINE_DRAIN: &str = "\
Exit codes:
  0  stopped, or not up before
  1  requests were still in flight at the deadline: it serves on";

pub(crate) const ENGINE_RELOAD: &str = "\
Examples:
  chainette engine reload chain.yaml --pool small
      with the settings that the file has now
  chainette engine reload --pool small
      with the settings it has: a fresh process

Exit codes:
  0  the new servers are ready
  1  they are not; the old ones serve on, or again
  2  something is missing, or the file has problems; nothing was touched";

pub(crate) const ENGINE_DOWN: &str = "\
Exit codes:
  0  stopped, or not up before
  1  one could not be stopped";
