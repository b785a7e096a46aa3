# Digests of the settings that a rule's result depends on, for its `params`. A changed setting reruns what it affects and
# nothing else, even if an earlier run was killed halfway. Thousands of jobs share a few digests.

data_identity = digest(run.data_identity())
detector_identities = {name: digest([run.data_identity(), run.reference.identity_of(name)]) for name in detectors}
reference_identities = {
    name: digest([detector_identities[name], run.reference.statistics_identity(name)]) for name in detectors
}
seeds_identity = [run.scoring.images, run.scoring.seed_blocks]


@functools.cache
def teacher_training_identity_of(name):
    return digest([run.data_identity(), teachers[name]])


@functools.cache
def identity_of_teacher(name):
    length = [teachers[name].duration_kimg] if run.trained_teacher else []
    return digest([teacher_training_identity_of(name), *length])


def teacher_training_identity(wildcards):
    return teacher_training_identity_of(wildcards.teacher)


def teacher_identity(wildcards):
    return identity_of_teacher(wildcards.teacher)


@functools.cache
def identity_of_student(name):
    if name in run.published_students:
        return digest(run.published_students[name])
    return digest([identity_of_teacher(TEACHER), students[name]])


def published_student_identity(wildcards):
    return identity_of_student(wildcards.published)


def student_identity(wildcards):
    return identity_of_student(wildcards.student)


def detector_identity(wildcards):
    return detector_identities[wildcards.detector]


def reference_identity(wildcards):
    return reference_identities[wildcards.detector]


def training_features_identity(wildcards):
    return digest([detector_identities[wildcards.detector], run.reference.images, spatial(wildcards.detector)])


def spatial(detector):
    return "sfid" in run.metrics_of(detector)


def network_identity(model):
    """Return the identity of a sampled network: a teacher, a published student, or a snapshot of a student."""
    return identity_of_teacher(model) if model in teachers else identity_of_student(student_and_kimg(model)[0])


@functools.cache
def identity_of_samples(model, sampler):
    return digest([network_identity(model), sampler_settings(model, sampler)])


def samples_identity(wildcards):
    return identity_of_samples(wildcards.model, wildcards.sampler)


@functools.cache
def identity_of_features(detector, model, sampler):
    outputs = [metric for metric in run.metrics_of(detector) if metric in ("is", "sfid")]  # need more than features
    return digest([detector_identities[detector], identity_of_samples(model, sampler), outputs])


def features_identity(wildcards):
    return identity_of_features(wildcards.detector, wildcards.model, wildcards.sampler)


def sampled_features_identity(wildcards):
    return digest([identity_of_features(name, wildcards.model, wildcards.sampler) for name in detectors])


@functools.cache
def identity_of_score(detector, model, sampler):
    settings = [run.metrics_of(detector), run.reference.images, seeds_identity]
    return digest([identity_of_features(detector, model, sampler), reference_identities[detector], settings])


def score_identity(wildcards):
    return identity_of_score(wildcards.detector, wildcards.model, wildcards.sampler)


def real_score_identity(wildcards):
    settings = [run.metrics_of(wildcards.detector), run.reference.images, run.reference.holdout]
    return digest([reference_identities[wildcards.detector], seeds_identity, settings])


def scores_identity(wildcards):
    """Return the identity of everything in the table; the paths distinguish snapshots and samplers."""
    models = [*teachers, *(f"{student}-0" for student in [*students, *run.published_students])]
    measured = [[reference_identities[name], run.metrics_of(name)] for name in detectors]
    networks = [network_identity(model) for model in models]
    real = [run.reference.images, run.reference.holdout]
    return digest([measured, networks, run.scoring.teacher_samplers, seeds_identity, real])
