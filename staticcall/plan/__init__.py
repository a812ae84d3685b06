"""Planning: verdicts and wishes become a `Plan` of sorted, disjoint edits, or a refusal with its reason.

`wishes` resolves names, `safety` refuses what would crash later, `bytes` says what each place shall hold,
`transaction` puts one key's edits together, and `planner` the whole file's.
"""
