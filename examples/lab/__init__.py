"""The lab: experiments with tiny models, hidden rules, and a bank whose items are helpful, misleading or irrelevant.

A symbol such as ``@`` stands for one of ten rules of arithmetic modulo 10. A pre-trained lab model follows a rule that
its prompt states, and guesses if none is stated. Post-training gives every symbol one true rule that the plain prompt
does not state. Trainer, retrieval, teachers, verifier and evaluation are those of the package.
"""
