"""What the paper's claims ask, why that matters, and how it is measured.

An analysis of one's own says the same of its claims by `describe_claim`.
"""

from keras_transfer.analysis.declaration import Claim, describe_claim

CITATION = """\
@inproceedings{neyshabur2020being,
  title         = {What is being transferred in transfer learning?},
  author        = {Neyshabur, Behnam and Sedghi, Hanie and Zhang, Chiyuan},
  booktitle     = {Advances in Neural Information Processing Systems},
  volume        = {33},
  year          = {2020},
  eprint        = {2008.11687},
  archivePrefix = {arXiv}
}"""

GLOSSARY = {
    "P": "the model pre-trained on the source",
    "RI": "a model at its random initialization",
    "P-T": "trained on the target from P; its head is fresh",
    "RI-T": "trained on the target from a random initialization",
    "replication": "a P of its own, a draw of the target's training images, "
    "two P-Ts and two RI-Ts, all with other seeds: the study done once more",
    "speed": "optimization speed, the test metric averaged over all epochs",
    "module": "a part of the network that is looked at as a whole: the stem, a "
    "residual block, the head (fc)",
    "barrier": "how far accuracy falls, between two models, below the straight "
    "line from one's to the other's; 5 points or more count as one",
    "basin": "a region of parameter space in which the loss hardly varies and "
    "beyond which it rises (Definition 3.1 of the paper)",
    "criticality": "how far a module may be moved back towards its start, and "
    "bear noise, before the training error rises; large means: do not touch",
    "CKA": "centred kernel alignment, how alike the features of two models "
    "are: 1 if they agree up to rotation and scale",
    "points": "hundredths: from 0.93 to 0.95 are 2 points",
    "95% interval": "of the median over replications; it holds the true one "
    "95 times in 100",
}

describe_claim(
    "C1",
    Claim(
        "Does P help by its features, and so less and less as images are cut "
        "into smaller blocks?",
        "If so, choose a P that has seen images like yours.",
        "P-Ts and RI-Ts learn from images whose blocks are shuffled. What is "
        "lost without P, as a share of P-T's accuracy, is compared between "
        "whole images and the smallest blocks.",
    ),
)
describe_claim(
    "C2",
    Claim(
        "Does P still help where nothing is left to see, and above all faster?",
        "What helps then is not features but the scale of weights, which a "
        "good initialization gives as well.",
        "P-Ts and RI-Ts learn from fully shuffled images. Their accuracy is "
        "compared after the last epoch, and averaged over all epochs.",
    ),
)
describe_claim(
    "C3",
    Claim(
        "Do two models from one P err on the same images?",
        "Models that err alike make a poor ensemble: if you want one, take "
        "several P's.",
        "Cohen's kappa of being wrong, which is 0 by chance and 1 on the same "
        "images. So that accuracy does not explain it, the better models are "
        "taken at the epoch at which they were as good as the worse.",
    ),
)
describe_claim(
    "C4",
    Claim(
        "Do two models from one P compute the same features?",
        "Shared features are features of P that were reused.",
        "Linear CKA of the two models' activations on test images, module by "
        "module. Its arctanh tells 0.98 from 0.99.",
    ),
)
describe_claim(
    "C5",
    Claim(
        "Do P-Ts stay close to each other, and less so the deeper the module?",
        "What hardly moves may as well be frozen.",
        "L2 distance of the weights, in all against that of RI-Ts, and module "
        "by module against depth. Larger modules lie further apart for their "
        "size alone, so it is also taken over the root of their parameters.",
    ),
)
describe_claim(
    "C6",
    Claim(
        "Is there a barrier on the line between two models?",
        "Where there is none, every model on the line is as good, and one "
        "average can stand for many models.",
        "Accuracy of the models (1 - α) w₁ + α w₂. The barrier is the furthest "
        "it falls below the straight line between both ends.",
    ),
)
describe_claim(
    "C7",
    Claim(
        "Do two P-Ts lie in one basin, and two RI-Ts not?",
        "A basin is more than a line without a barrier: whatever is mixed of "
        "its models is good.",
        "By Definition 3.1: inside, the loss varies by ε at most; beyond the "
        "boundary it rises by 2ε or more within a distance δ. Both are chosen "
        "on the other replications, and the smallest margin counts.",
    ),
)
describe_claim(
    "C8",
    Claim(
        "Are higher modules more sensitive than lower ones?",
        "If so, freeze from below.",
        "Criticality of each module, ranked against its depth, held against "
        "all other orders of the modules.",
    ),
)
describe_claim(
    "C9",
    Claim(
        "Does it matter on which path, and from which weights, criticality is "
        "measured?",
        "If not, the straight path to the final weights is enough, and cheap.",
        "Rank correlation of the modules' criticality between each two of four "
        "paths: direct or as trained, to the final or to the best weights.",
    ),
)
describe_claim(
    "C10",
    Claim(
        "Is the head critical for P-T?",
        "It is the one module that has nothing from P: never freeze or reuse "
        "it.",
        "Criticality of the head over the median of all other modules.",
    ),
)
describe_claim(
    "C11",
    Claim(
        "Is an earlier checkpoint of P as good a start as its last?",
        "Then pre-training may end early, and save its epochs.",
        "P-Ts start from several checkpoints. The first that lies in the basin "
        "of the last, with no barrier to it and a loss as low, is held against "
        "the last.",
    ),
)
describe_claim(
    "C12",
    Claim(
        "Does averaging models of one basin do harm?",
        "An average costs one model to run, and may be better than each.",
        "Test accuracy of the averaged weights minus the mean of their "
        "members'. Less than 1 point lost is no harm.",
    ),
)
describe_claim(
    "L1",
    Claim(
        "How many labels does P save?",
        "Labels are dear.",
        "P-Ts and RI-Ts learn from more and more images. Between the sizes "
        "tried, how many times as many do RI-Ts need for what P-Ts reach with "
        "the fewest?",
    ),
)
