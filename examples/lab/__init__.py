"""The skill lab: tiny models, hidden rules and a bank whose items are known to help, mislead or miss the point.

A symbol such as ``@`` stands for one of ten rules of arithmetic modulo 10. A pre-trained lab model follows a rule that
its prompt states and guesses where none is stated. Post-training gives every symbol one true rule that the plain prompt
does not state. Everything but the model, the questions and the bank is the package's own: trainer, retrieval, teachers,
verifier, evaluation.
"""
