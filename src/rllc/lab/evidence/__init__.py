"""From records to what people read: tables, figures, verdicts on the paper's claims, one page with all of it.

paper       the numbers the paper prints
outcomes    what seeds say: means, deviations, tests
tables      Tables 1 and 2 and those of the other studies (markup: how; notes: what stands below)
figures     Figures 1, 2, 4, 5 (curve_figures, law_figure, law_paths, drawing); cost: 3 (timings)
claims      each claim's verdict (law_claims, seed_claims, cost_claims, verdicts)
report      the page
results     the commands
"""
