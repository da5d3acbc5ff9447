package dev.handheld

/** Why a bundle or a profile is refused. The message is for people: what was given, what is wanted, what to do. */
class BundleError(val kind: Kind, message: String, cause: Throwable? = null) : Exception(message, cause) {
    enum class Kind {
        /** Not there, or not readable. */
        MISSING,

        /** Not JSON, or not of the shape that the format has. */
        MALFORMED,

        /** Of another version or kind of the format. */
        VERSION,

        /** A path or a link that leads out of the bundle. */
        ESCAPES,

        /** Truncated, grown or altered: size or SHA-256 is not the manifest's. */
        ALTERED,

        /** Tensors that do not lie in their file, or are not what the manifest says. */
        TENSORS,
    }
}
