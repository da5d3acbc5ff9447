import SwiftUI

@main
struct HandheldDemoApp: App {
    init() {
        Device.watchBattery()
    }

    var body: some Scene {
        WindowGroup { LibraryView() }
    }
}
