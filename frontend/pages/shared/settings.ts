// What the server tells a page's script, in its `meta` element.

export function settingsOf<Settings>(): Settings {
  const element = document.querySelector<HTMLMetaElement>('meta[name="tusd-py"]')
  return JSON.parse(element?.content ?? '{}') as Settings
}
