"""Experiments in PyTorch: real data, networks, runs that repeat to the bit, records, tables, figures.

A run, from below:

    data        images and text decoded once to arrays whose digest is pinned
    networks    the paper's three networks, and two transformers
    tasks       data + network + split + normalisation, by name
    settings    what a run is trained with (methods: what each answers; peers: those of others)
    optimizers  settings by name, and the rates to try
    cells       what a run is asked and what it answers
    training    one run: a pure function of its cell (task, optimizer, seed, steps)
    records     one Parquet file per finished run
    selection   which of the rates tried to keep
    sweep       many runs at once, on this machine or a cluster
    search      rates chosen on one seed, then all seeds of the chosen
    studies     which optimizers, on which tasks; adaptive: the one by stopping times

The commands:

    cli         the command `rllc`; options: the command line as data
    compare, run, runs, merging, pruning, bench, show    each what its name says

And what is built on it:

    evidence    from records to tables, figures, verdicts and the page
    memoryless  what memory does to the loss, in JAX

The paper is arXiv 2402.15262; its section 6 and appendix A.5 say what is trained on what.
"""
