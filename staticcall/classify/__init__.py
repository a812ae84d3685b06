"""Classifying: each site gets a verdict by a policy, an ordered ladder of small named rules.

A rule looks at one site and either gives the verdict or passes. Every ladder ends in a rule that always
answers, so every site has an answer and every answer a reason.
"""
