"""Models trained for real, on data that comes with scikit-learn, and exported the usual ways."""

import warnings

import lightgbm
import numpy as np
import onnxmltools
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as ToolsFloats
from sklearn import datasets, ensemble, linear_model, preprocessing, tree
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType

warnings.filterwarnings("ignore")

OPSETS = {"": 18, "ai.onnx.ml": 3}
RANDOM = {"random_state": 0}
BOOSTED = {"n_estimators": 20, "n_jobs": 1}


def data(name):
    table, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    return table.astype(np.float32), target


def holes(table, share=0.1):
    """The same with values missing."""
    random = np.random.default_rng(7)
    return np.where(random.random(table.shape) < share, np.nan, table).astype(table.dtype)


def thresholds(model):
    """What the trees of a model compare each feature with."""
    found = {}
    for node in model.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        lists = {a.name: list(a.ints) or list(a.floats) for a in node.attribute}
        for feature, value in zip(lists["nodes_featureids"], lists.get("nodes_values", [])):
            found.setdefault(feature, []).append(value)
    return found


def rows(table, model, count=2000, odd=True):
    """Rows of the data and between them, with values at the trees' thresholds and beside them, and
    with NaN and the infinities."""
    random = np.random.default_rng(11)
    if table.dtype.kind == "i":
        return table[random.integers(len(table), size=count)]
    base = table[random.integers(len(table), size=count)]
    other = table[random.integers(len(table), size=count)]
    rows = np.where(random.random(base.shape) < 0.5, base, other).astype(table.dtype)
    for feature, values in thresholds(model).items():
        if feature >= rows.shape[1]:
            continue
        exact = random.choice(np.array(values, np.float32), count).astype(table.dtype)
        at = random.random(count)
        column = np.where(at < 0.2, exact, rows[:, feature])
        beside = np.nextafter(exact, random.choice([-np.inf, np.inf], count).astype(table.dtype))
        rows[:, feature] = np.where(at < 0.05, beside, column)
    if odd:
        at = random.random(rows.shape)
        values = random.choice(np.array([np.nan, np.inf, -np.inf, -0.0], table.dtype), rows.shape)
        rows = np.where((at < 0.02) & (np.arange(count) % 2 == 0)[:, None], values, rows)
    return np.ascontiguousarray(rows)


def exported(model, table, **options):
    kinds = {"float32": FloatTensorType, "float64": DoubleTensorType, "int64": Int64TensorType}
    types = [("x", kinds[table.dtype.name]([None, table.shape[1]]))]
    return to_onnx(model, initial_types=types, target_opset=OPSETS, **options)


def plain(model):
    return {"options": {id(model): {"zipmap": False}}}


def scikit_models():
    """Name, model, table, whether odd values are asked."""
    iris, species = data("iris")
    digits, numbers = data("digits")
    cancer, malign = data("breast_cancer")
    wine, cultivar = data("wine")
    diabetes, progress = data("diabetes")
    words = np.array(["setosa", "versicolor", "virginica"])[species]
    both = np.c_[progress, progress[::-1]]
    forests = {"forest": ensemble.RandomForestClassifier, "extra": ensemble.ExtraTreesClassifier}
    for name, kind in forests.items():
        for of, (table, target) in {"iris": (iris, species), "digits": (digits, numbers),
                                    "cancer": (cancer, malign), "words": (iris, words)}.items():
            yield f"{name} {of}", kind(30, **RANDOM).fit(table, target), table
    yield "forest wine wide", ensemble.RandomForestClassifier(20, **RANDOM).fit(
        wine.astype(np.float64), cultivar), wine.astype(np.float64)
    yield "tree wine", tree.DecisionTreeClassifier(**RANDOM).fit(wine, cultivar), wine
    yield "stump", tree.DecisionTreeClassifier(max_depth=1).fit(cancer, malign), cancer
    yield "boosting iris", ensemble.GradientBoostingClassifier(
        n_estimators=20, **RANDOM).fit(iris, species), iris
    yield "boosting cancer", ensemble.GradientBoostingClassifier(
        n_estimators=30, **RANDOM).fit(cancer, malign), cancer
    yield "histogram iris", ensemble.HistGradientBoostingClassifier(
        max_iter=20, **RANDOM).fit(holes(iris), species), iris
    yield "histogram cancer", ensemble.HistGradientBoostingClassifier(
        max_iter=30, **RANDOM).fit(holes(cancer), malign), cancer
    yield "ada", ensemble.AdaBoostClassifier(n_estimators=8, **RANDOM).fit(wine, cultivar), wine
    yield "bagging", ensemble.BaggingClassifier(n_estimators=5, **RANDOM).fit(wine, cultivar), wine
    for name, kind in {"forest": ensemble.RandomForestRegressor,
                       "extra": ensemble.ExtraTreesRegressor}.items():
        yield f"{name} diabetes", kind(30, **RANDOM).fit(diabetes, progress), diabetes
        yield f"{name} two targets", kind(20, **RANDOM).fit(diabetes, both), diabetes
    yield "tree diabetes", tree.DecisionTreeRegressor(**RANDOM).fit(diabetes, progress), diabetes
    yield "boosting diabetes", ensemble.GradientBoostingRegressor(
        n_estimators=30, **RANDOM).fit(diabetes, progress), diabetes
    yield "histogram diabetes", ensemble.HistGradientBoostingRegressor(
        max_iter=30, **RANDOM).fit(holes(diabetes), progress), diabetes
    yield "isolation", ensemble.IsolationForest(n_estimators=10, **RANDOM).fit(cancer), cancer


def pipelines():
    """The same with what stands before and beside trees in a pipeline."""
    iris, species = data("iris")
    wine, cultivar = data("wine")
    forest = ensemble.RandomForestClassifier(10, **RANDOM)
    numbers = iris.copy()
    numbers[:, 3] = species
    steps = {
        "standard": preprocessing.StandardScaler(),
        "range": preprocessing.MinMaxScaler(),
        "robust": preprocessing.RobustScaler(),
        "unit": preprocessing.Normalizer(),
        "binary": preprocessing.Binarizer(threshold=3.0),
        "imputed": SimpleImputer(),
        "powers": preprocessing.PolynomialFeatures(2),
        "columns": ColumnTransformer([("a", preprocessing.StandardScaler(), [0, 2]),
                                      ("b", "passthrough", [1, 3])]),
    }
    for name, step in steps.items():
        table = holes(iris) if name == "imputed" else iris
        yield f"{name}, forest", make_pipeline(step, forest).fit(table, species), table
        linear = linear_model.LogisticRegression(max_iter=300)
        yield f"{name}, logistic", make_pipeline(step, linear).fit(table, species), table
    yield "one-hot, forest", make_pipeline(
        ColumnTransformer([("a", preprocessing.StandardScaler(), [0, 1]),
                           ("b", preprocessing.OneHotEncoder(handle_unknown="ignore"), [3])]),
        forest).fit(numbers, species), numbers
    codes = np.c_[species, species[::-1]].astype(np.int64)
    yield "ordinal, forest", make_pipeline(
        preprocessing.OrdinalEncoder(), forest).fit(codes, species), codes
    yield "linear", linear_model.LinearRegression().fit(wine, cultivar), wine
    yield "logistic two", linear_model.LogisticRegression(max_iter=5000).fit(
        wine, cultivar == 1), wine


def boosters():
    """XGBoost and LightGBM through onnxmltools."""
    iris, species = data("iris")
    cancer, malign = data("breast_cancer")
    diabetes, progress = data("diabetes")
    for name, table, target in [("iris", iris, species), ("cancer", cancer, malign)]:
        for missing in [False, True]:
            given = holes(table) if missing else table
            full = f"{name}{' missing' if missing else ''}"
            yield f"xgboost {full}", xgboost.XGBClassifier(
                **BOOSTED, max_depth=4).fit(given, target), given
            yield f"lightgbm {full}", lightgbm.LGBMClassifier(
                **BOOSTED, verbose=-1).fit(given, target), given
    yield "xgboost diabetes", xgboost.XGBRegressor(
        **BOOSTED, max_depth=4).fit(holes(diabetes), progress), holes(diabetes)
    yield "lightgbm diabetes", lightgbm.LGBMRegressor(
        **BOOSTED, verbose=-1).fit(holes(diabetes), progress), holes(diabetes)


def booster_exported(model, table):
    kind = "xgboost" if type(model).__module__.startswith("xgboost") else "lightgbm"
    convert = getattr(onnxmltools, f"convert_{kind}")
    return convert(model, initial_types=[("x", ToolsFloats([None, table.shape[1]]))])
