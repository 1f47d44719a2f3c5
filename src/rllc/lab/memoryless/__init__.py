"""Experiments on what memory does to the loss (arXiv 2502.02132), in JAX; `rllc memoryless` is one of them.

problems, images    what is minimised: small smooth losses, and networks on real images
names               optimizers by name, with the parameters of docs/memoryless.md's table
orders              distances between a method and its memoryless counterpart, and their slopes
command, study      `rllc memoryless NAME`
effects, slopes     what each optimizer's memory does, and the orders of all distances, as tables
training, claim     training with memory and without, with the correction and without
explicit            the correction as a term of one's own, at several strengths
*_report            what the runs of claim and explicit say
law                 gain and mean delay of recorded laws over training
cost                what a correction costs, in gradients
records, drawing    JSON files, and what the pictures share
"""
