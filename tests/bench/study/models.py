"""Small models on scikit-learn's own data, and corruptions of what they are fed."""

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

DATA = {
    "digits": (load_digits, lambda: MLPClassifier(hidden_layer_sizes=(48,), alpha=1e-3, max_iter=600, random_state=20)),
    "breast_cancer": (load_breast_cancer, lambda: LogisticRegression(max_iter=2000)),
    "wine": (load_wine, lambda: LogisticRegression(max_iter=2000)),
}

_models = {}


class Model:
    """Trained on one half; the other half is the field."""

    def __init__(self, name):
        load, classifier = DATA[name]
        x, y = load(return_X_y=True)
        self.train, self.field, self.labels_train, self.labels = train_test_split(x, y, test_size=0.5, stratify=y, random_state=20)
        self.pipeline = make_pipeline(StandardScaler(), classifier()).fit(self.train, self.labels_train)
        self.sd = self.train.std(axis=0)
        self.classes = len(self.pipeline.classes_)

    def draw(self, rng, count):
        """Rows of the field, drawn with replacement, and their labels."""
        rows = rng.integers(0, len(self.field), count)
        return self.field[rows], self.labels[rows]

    def answer(self, x):
        return self.pipeline.predict_proba(x)


def model(name):
    if name not in _models:
        _models[name] = Model(name)
    return _models[name]


def offset(rng, x, sd):
    out = x.copy()
    fifth = np.flatnonzero(sd > 0)[::5]
    out[:, fifth] += sd[fifth]
    return out


def stuck(rng, x, sd):
    out = x.copy()
    fifth = np.flatnonzero(sd > 0)[::5]
    out[:, fifth] = 0
    return out


CORRUPTIONS = {
    "none": lambda rng, x, sd: x,
    "noise of ½ sd": lambda rng, x, sd: x + rng.normal(0, 0.5, x.shape) * sd,
    "noise of 1 sd": lambda rng, x, sd: x + rng.normal(0, 1, x.shape) * sd,
    "a fifth of the inputs + 1 sd": offset,
    "a fifth of the inputs 0": stuck,
    "all inputs × .7": lambda rng, x, sd: 0.7 * x,
}


def signals(probabilities):
    """Entropy in nats and top-1 confidence."""
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return np.maximum(-(safe * np.log(safe)).sum(axis=1), 0.0), probabilities.max(axis=1)
