"""Language models fine-tuned on pseudo-labels, under the risks of :mod:`whet.classify.risks`.

What needs torch imports it inside functions, so that importing these modules does not.
"""
