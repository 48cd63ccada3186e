import { render } from 'preact'

render(<h1>Upload files</h1>, document.body)
