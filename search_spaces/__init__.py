"""What may vary: dotted config paths and their domains (domains.py).  Knows no search library, and no study.

    tencdm.py ...        one file a system:   nuisance(trial)  what each arm of a study tunes before it is compared
                                              space(trial)     the same and what the paper argues about
    joint.py             the mission's: encoder, schedule, self-conditioning, annealing, optimizer, at once

A space is a function of the recipe, since what is a wide range of learning rates at paper size is a narrow one of wrong
ones on a laptop; what it returns are plain values.  `LOSS_DEPENDS_ON` names the paths under which a system's training
loss is another quantity, so that nobody stops trials by comparing losses across them.
"""
