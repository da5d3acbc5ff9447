import SwiftUI

@main
struct HandheldDemoApp: App {
    var body: some Scene {
        WindowGroup { LibraryView() }
    }
}
