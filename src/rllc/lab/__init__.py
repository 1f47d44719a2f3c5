"""Experiments in PyTorch: real data, networks, runs that repeat to the bit, records, tables, figures.

    data        images decoded once to arrays whose digest is pinned
    networks    the paper's three networks
    tasks       data + network + split + normalisation, by name
    settings    what a run is trained with
    optimizers  settings by name, and the rates to try
    training    one run: a pure function of its cell (task, optimizer, seed, steps)
    records     one Parquet file per finished run
    selection   which of the rates tried to keep
    sweep       many runs at once, only those that are missing
    compare     `rllc compare`: rates chosen, several seeds, the table
    figures     the picture
    show        `rllc show`
    options     the command line as data
    cli         the command `rllc`

The paper is arXiv 2402.15262; its section 6 and appendix A.5 say what is trained on what.
"""
